"""The training set, from its archive to what a model is trained on. No Dagster.

- The archive: fetch.py gets it, archive.py reads it, kept.py has it in a bucket.
- Passes over its images: decode.py; survey.py for ground truth and counts, tensors.py for tensors.
- tables.py: columns of its tables, and choosing rows.
- splits.py: the manifest of splits, by the rule in physics/splits.py.
- dataset.py: what is loaded.
- audit.py: what is wrong with it.

What is done to one image is physics/; when any of it is done, and what the web UI shows, assets/.
"""
