"""One module a command or a group of commands; imported only when it runs."""
