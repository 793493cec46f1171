"""What a node's processes share: a folder of their own, files made and questions answered once for all of them."""
