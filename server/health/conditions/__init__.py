"""Is the count right? One module a family of faults, each pure: typed series in, judgement out.

Each states its thresholds for opening and for clearing as constants, and what they rest on. All
follow three rules: what is missing neither fires nor clears; opening hours decide what was to be
expected; what cannot be known yet is said, with when it can be.
"""
