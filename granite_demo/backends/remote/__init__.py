"""Another server in place of a model of this process: any that speaks OpenAI's API."""
