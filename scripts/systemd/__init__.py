"""Units for systemd, and the commands that install and remove them."""
