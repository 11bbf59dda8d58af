"""Results for other tools: objects in QuPath, pyramids for viewers, models for other runtimes."""
