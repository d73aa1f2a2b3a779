"""Speed and memory of reftune beside its peers: see README.md of this folder.

Must not be imported by the package or its tests of correctness.
"""
