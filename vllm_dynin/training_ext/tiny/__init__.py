"""`dynin-tiny`: a small model of all seven directions, trained by the staged recipe.

The world it knows: handwritten digits, clips of a digit that moves, spoken digits, lists of digit
words. Everything goes through the package's own codecs and prompt layouts.
"""
