"""How fast training, embedding and loading are; nothing here is used to train."""
