"""polluxctl, the command line of polluxd."""
