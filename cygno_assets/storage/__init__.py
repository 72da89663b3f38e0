"""Where images and tensors are kept: a local folder or S3, by URL."""
