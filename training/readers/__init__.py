"""Owns how each kind of data set is read; refuses to know how samples are split or learnt from.

Each module has one function ``read(data, bundle, root, problems) -> Samples``: what it can read
becomes samples, what it cannot becomes a line of ``problems``.
"""
