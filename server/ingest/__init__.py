"""From a frame on the broker to rows, rollups and a receipt. Start with `worker`.

`mqtt` receives, `listener` makes batches, `batch` decides what is next in sequence, `places` says
where it belongs, `writer` commits it, `hello` answers and places what was undated.
"""
