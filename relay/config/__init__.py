"""The settings, each defined once, and the value types that they hold. Reads the environment, and nothing else."""

from relay.config.settings import SETTINGS, Setting, Settings, SettingsError, load, misspelt, read

__all__ = ["SETTINGS", "Setting", "Settings", "SettingsError", "load", "misspelt", "read"]
