"""Names of classes, files and runs that strangers could choose to break what shows them."""

NAMES = [
    "$x$ and $",
    "$\\frac{1}{$",
    "\\frac{}}{{",
    "_hidden",
    "two\nlines\r\tand\x1b[31m red",
    "line\u2028separator\u202eright to left",
    "\u732b\u72ac \U0001f951",
    "\u05d7\u05ea\u05d5\u05dc \u0642\u0637\u0629",
    "x" * 3000,
    "\u0301" * 500,
    "file \udcff",
    "=HYPERLINK(1)",
    "<b>bold</b>&amp;<a href='javascript:hacked=1'>a</a>",
    "</script><script>hacked=1</script><!--",
    "<img src=x onerror=hacked=1>",
    "",
]
