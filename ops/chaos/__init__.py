"""Kill everything at random under load, then prove that nothing was lost, doubled or altered.

Reading order: `plan` (what is done when), `record` (the truth's file), `truth` (who writes it),
`verify` (who judges), `checks` (by which questions), `system` (what is tortured), `torture`, `run`.
"""
