"""A database per released schema, which every later version opens; made by ``make``."""
