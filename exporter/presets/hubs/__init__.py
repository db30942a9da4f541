"""The hubs that presets are downloaded from, each through its own client library."""
