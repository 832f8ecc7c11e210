"""Colours of classes."""


def color_map(num_colors: int) -> list[tuple[int, int, int]]:
    """Return the colours of PASCAL VOC's palette: black for class 0, then colours that differ in their high bits.

    Args:
        num_colors: How many, at most 256.

    Source:
        The colour map of the development kit of PASCAL VOC: bit 3 j + c of the class is bit 7 − j of channel c.
    """
    colors = []
    for label in range(num_colors):
        red, green, blue = (
            sum((label >> (3 * place + channel) & 1) << (7 - place) for place in range(3)) for channel in range(3)
        )
        colors.append((red, green, blue))
    return colors
