"""Methods of concept unlearning: one file each, the file's name is the method's, its class is `METHOD`."""
