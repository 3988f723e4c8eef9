"""One process on one device: claim a slot, train its trial, finish, again."""
