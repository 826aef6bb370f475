"""What to do about a job, decided without I/O, and the machinery that carries it out; free of kopf and aiohttp."""
