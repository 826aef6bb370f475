"""Real text that every machine has: Python's own manual, as JSONL."""

import json
from pydoc_data import topics


def manual(characters: int = 1500) -> bytes:
    """The manual's paragraphs, gathered to documents of at least so many characters: one `{"text": ...}` a line."""
    documents: list[str] = []
    for topic in topics.topics.values():
        document = ""
        for paragraph in topic.split("\n\n"):
            document += paragraph + "\n\n"
            if len(document) >= characters:
                documents.append(document)
                document = ""
        documents.append(document)
    return "".join(json.dumps({"text": document}) + "\n" for document in documents if document.strip()).encode()
