"""Models in Hugging Face's layouts: what they are called there (`families`), and how they are written (`save`)
and read (`directory`, `load`).
"""
