"""QR codes as SVG, to be printed or shown."""

import io

import segno


def svg(text: str) -> str:
    """Return the QR code of a text as an SVG element that scales with its surroundings.

    Error correction Q: a quarter may be dirty, as on a poster or a creased receipt.
    """
    out = io.BytesIO()
    code = segno.make(text, error="q", micro=False)
    code.save(out, kind="svg", xmldecl=False, svgns=True, omitsize=True, border=4, light="#fff")
    return out.getvalue().decode().strip()
