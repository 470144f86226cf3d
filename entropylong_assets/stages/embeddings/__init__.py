import os

# Lance warns about every partition without vectors in every segment. With shared centroids and
# shards on subjects of their own there are many, and nothing is wrong.
os.environ.setdefault("LANCE_LOG", "warn,lance::index::vector::builder=error")
