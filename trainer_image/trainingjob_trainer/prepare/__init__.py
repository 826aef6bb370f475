"""From raw data to shards and their manifest, and the check that comes before anything else.

`check` decides what a job has to do, `local` prepares in this process, `ray_data` on many pods; both call the same
plain functions: `source` (read), `examples` (clean, hash, split), `tokenizer`, `shards` (write).
"""
