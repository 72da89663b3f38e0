"""What is done to images and why: plain numpy and Pillow, no Dagster, nothing of ours outside."""
