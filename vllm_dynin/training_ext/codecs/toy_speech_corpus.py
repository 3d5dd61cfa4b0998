"""What the toy speech codec is fitted on: sentences that cover the phones, numbers, lone words."""

from __future__ import annotations

import random
import re

NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
    "hundred",
)

_CARRIERS = (
    "The answer is {}.",
    "{} plus {} is {}.",
    "{} minus {} is {}.",
    "{} {} {}.",
    "{} {}",
    "the number {}",
    "A picture of the digit {}.",
    "{} times {}",
)

SENTENCES = """\
The old man put his boat into the water before the sun came up.
She sells fresh fish and bread at the market by the river.
A quick brown fox jumps over the lazy dog near the bank.
We could hear the children shouting with joy in the yard.
Please choose a number between four and nineteen.
The judge asked them to measure the length of the garage.
Thick fog covered the valley, and nobody could see the road.
He thought that both of his brothers were at the beach.
The young boy enjoyed a cup of hot chocolate and a toy.
My father usually works in a large building in the city.
It is a pleasure to watch the orange sky in the evening.
They gave us good food, strong coffee and a warm bed.
Why would you put this sugar in the soup?
The teacher wrote five words on the board with white chalk.
Her voice was low, but every person in the room heard it.
Birds fly south when the leaves turn yellow and red.
The engine made a strange noise and then it stopped.
Look at the picture of the house with the green door.
I would rather go there by train than by bus.
The king and the queen of that country had three sons.
Each of the seven sisters wore a purple shawl.
Nobody knows how the fire in the church began.
A small mouse ran under the chair and out through a hole.
Show me the image of a round blue circle.
The answer to the question is eight.
There are nine apples and two pears on the table.
You should push this button and pull that lever.
The azure vision was a rare treasure on television.
He chews gum while he checks the age of the cheese.
We heard thunder, though the weather was smooth and bright.
Both the moth and the cloth are worth nothing at all.
Those feathers belong to another mother bird.
The boy pointed at the coin and made a loud noise.
Oil and soil spoil the joint of the royal toy.
How now, the cow found a brown mouse outside the house.
A good cook took a look at the book and stood by the brook.
The cute few used music to amuse the huge crowd.
Hot rocks dropped on top of the long dock.
Caught in the hall, the tall dog saw a small ball fall.
Sing a long song for the young king in the spring.
Zebras graze in zones near the zoo for days.
Red roses rise around the rural road.
Will Larry like the little yellow lily?
What would we want with wet white wool?
Yes, the year your yacht yielded was a young one.
Baby Bob began to grab a big cab.
Pat put a cup of ripe apples up on top.
Ted told Tim to wait until ten to eight.
David had a good idea and said he did it.
Kate can kick the black cake back quickly.
Greg gave a big hug to his eager dog.
Fifty-five funny leaves fell off the safe roof.
Vivian gave five very heavy gloves to Steve.
The thief thinks a path goes through the north.
Sue sees six icy glass vases on the sea.
She wished for a fresh dish of fish and a shell.
Hank has a habit of hurrying home ahead of him.
May my mom make some warm jam for him?
Nine nuns never sent men in on a sunny noon.
The earth turned and the nurse heard the bird's first word.
""".splitlines()


def corpus(num_carriers: int = 120, num_words: int = 120, seed: int = 0) -> list[str]:
    """Texts to speak: all sentences, carrier phrases with random numbers, words on their own."""
    rng = random.Random(seed)
    texts = list(SENTENCES)
    for _ in range(num_carriers):
        carrier = rng.choice(_CARRIERS)
        texts.append(carrier.format(*(rng.choice(NUMBER_WORDS) for _ in range(carrier.count("{")))))
    words = sorted({word for text in SENTENCES for word in re.findall(r"[a-z']+", text.lower())})
    return [*texts, *(2 * NUMBER_WORDS[:10]), *NUMBER_WORDS, *rng.sample(words, num_words)]
