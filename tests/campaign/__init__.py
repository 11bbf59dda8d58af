"""Ten thousand damaged inputs and two hundred kills; see `campaign.command`."""
