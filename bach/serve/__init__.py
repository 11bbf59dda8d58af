"""A service: photos and slides by HTTP, for programs and for people with a browser."""
