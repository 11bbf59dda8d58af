"""The paper's run on the challenge data: what is run, what it takes, how it compares."""
