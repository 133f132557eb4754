"""Everybody who is asked about a result object, as one table; each judge is a function.

A judge gets a Part 10 file and what it was made from, and answers with complaints (none: it
passes) or with the reason why it does not judge such an object. No judge trusts the builders:
other people's programs read the bytes, our own checkers hold them against the standard's tables.
"""
