"""TODO docstring (from confusion)."""

from efficientnet_tf.evaluation.per_class import FONT_SIZE, GAP, LINE, LONGEST_NAME, RIGHT, WRONG
from efficientnet_tf.visualization.grids import shorten

MOST_CLASSES = 100  # in a picture


def draw_confusion(counts, class_names, title):
    """Draw a confusion matrix: true classes down, predicted ones across, coloured by the share of the row.

    Args:
        counts: int [classes, classes], at most 100 classes.
        class_names: sequence of str.
        title: str.

    Returns:
        PIL.Image.Image. Counts stand in the cells that they fit in; an empty cell is white.
    """
    from PIL import Image, ImageDraw, ImageFont

    classes = len(class_names)
    cell = min(44, max(16, 1200 // classes))
    font = ImageFont.load_default(FONT_SIZE)
    small = ImageFont.load_default(min(FONT_SIZE, max(8, cell // 2)))
    names = [shorten(font, name, LONGEST_NAME) for name in class_names]
    margin = round(max(map(font.getlength, names))) + GAP
    left, top = GAP + LINE + margin, GAP + 3 * LINE + margin
    wide = left + max(classes * cell, round(font.getlength(title)) - left) + 2 * GAP
    canvas = Image.new("RGB", (max(wide, left + 320), top + classes * cell + 3 * LINE + 2 * GAP), "white")
    pen = ImageDraw.Draw(canvas)

    def write_upright(text, x, y):
        """Write upwards, centred at column x, from y on."""
        label = Image.new("RGB", (round(font.getlength(text)) + 2, LINE), "white")
        ImageDraw.Draw(label).text((1, LINE // 2), text, fill="black", font=font, anchor="lm")
        canvas.paste(label.rotate(90, expand=True), (round(x - LINE / 2), round(y - label.width)))

    pen.text((GAP, GAP), title, fill="black", font=font)
    middle = classes * cell / 2
    pen.text((left + middle, GAP + 2 * LINE), "predicted class", fill="dimgray", font=font, anchor="mm")
    write_upright("true class", GAP + LINE / 2, top + middle + font.getlength("true class") / 2)
    for i, name in enumerate(names):
        at = (i + 0.5) * cell
        pen.text((left - GAP / 2, top + at), name, fill="black", font=font, anchor="rm")
        write_upright(name, left + at, top - GAP / 2)
    for row in range(classes):
        total = counts[row].sum()
        for column in range(classes):
            x, y, count = left + column * cell, top + row * cell, int(counts[row, column])
            share = count / total if count else 0.0
            colour = _blend(RIGHT if row == column else WRONG, share)
            pen.rectangle([x, y, x + cell, y + cell], fill=colour, outline="lightgray")
            if count and small.getlength(str(count)) <= cell - 3:
                ink = "white" if share > 0.4 else "black"
                pen.text((x + cell / 2, y + cell / 2), str(count), fill=ink, font=small, anchor="mm")
    _draw_legend(pen, font, left, top + classes * cell + GAP)
    return canvas


def _blend(colour, share):
    """Mix white and a colour; the least share differs from none."""
    weight = 0.1 + 0.9 * share if share else 0.0
    return tuple(round(255 + (part - 255) * weight) for part in colour)


def _draw_legend(pen, font, x, y):
    for line, (colour, text) in enumerate(((RIGHT, "right"), (WRONG, "wrong"))):
        middle = y + (line + 0.5) * LINE
        for step in range(101):
            left = x + step
            pen.line([(left, middle - 6), (left, middle + 5)], fill=_blend(colour, step / 100))
        pen.text((x + 108, middle), f"{text}, 0 to 100% of the row", fill="dimgray", font=font, anchor="lm")
