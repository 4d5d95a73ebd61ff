"""Where the parts of a model are that can go, and how the rest makes up for them."""
