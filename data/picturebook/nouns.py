"""Things that the picture-book world does not have: everyday nouns with their forms, and made-up nouns.

Left out are parts of what is drawn (a roof, a wheel, grass, water), wider words for it (an animal, a vehicle) and
near neighbours of it (a ship, a duck, a rose): whether a picture shows one of those would be a matter of opinion.
"""

import random
from dataclasses import dataclass
from functools import cache

from data.picturebook.scene import COLOURS, KINDS
from data.picturebook.unseen_wordings import VERBS

# "wolf/wolves" gives a plural that is not just the noun with an s.
COUNTED = {
    "animals": """dog, cat, horse, cow, sheep/sheep, pig, goat, donkey, rabbit, mouse/mice, rat, squirrel,
        hedgehog, fox/foxes, wolf/wolves, bear, lion, tiger, leopard, elephant, giraffe, zebra, monkey, gorilla,
        kangaroo, camel, deer/deer, moose/moose, hippo, rhino, panda, koala, crocodile, snake, lizard, turtle,
        frog, whale, dolphin, octopus/octopuses, crab, lobster, snail, worm, spider, ant, bee,
        butterfly/butterflies, dragonfly/dragonflies, beetle, mosquito/mosquitoes, puppy/puppies, kitten, lamb,
        dinosaur, dragon, unicorn, hamster, otter, seal, pony/ponies, badger""",
    "people": """man/men, woman/women, boy, girl, baby/babies, child/children, person/persons, king, queen,
        prince, princess/princesses, knight, pirate, clown, doctor, nurse, teacher, farmer, policeman/policemen,
        fireman/firemen, soldier, sailor, cook, dancer, singer, astronaut, ghost, witch/witches, wizard, robot,
        snowman/snowmen, mermaid, cowboy, judge, waiter, skeleton, angel, ballerina""",
    "food": """apple, banana, pear, peach/peaches, cherry/cherries, strawberry/strawberries, lemon, melon,
        pineapple, carrot, potato/potatoes, tomato/tomatoes, onion, cucumber, pumpkin, mushroom, egg,
        sandwich/sandwiches, burger, pizza, sausage, pancake, cake, cookie, biscuit, doughnut, muffin, pie, hot
        dog, ice cream""",
    "in the house": """table, chair, sofa, bed, desk, lamp, carpet, curtain, pillow, blanket, mirror, clock,
        shelf/shelves, cupboard, wardrobe, drawer, fridge, oven, sink, toilet, bathtub, shower, towel, candle,
        vase, cup, mug, glass/glasses, plate, bowl, bottle, fork, knife/knives, spoon, pan, kettle, teapot, broom,
        bucket, basket, box/boxes, key, lock, phone, computer, laptop, keyboard, screen, television, radio,
        camera, printer, battery/batteries, book, newspaper, letter, pen, pencil, crayon, ruler, envelope, stamp,
        bag, backpack, suitcase, wallet, umbrella""",
    "to wear": """hat, cap, helmet, crown, scarf/scarves, coat, jacket, shirt, sweater, dress/dresses, skirt,
        sock, shoe, boot, glove, mitten, belt, button, ring, necklace, watch/watches, tie""",
    "on the road": """truck, lorry/lorries, bus/buses, van, taxi, tractor, bicycle, bike, motorbike, scooter,
        skateboard, train, tram, plane, helicopter, rocket, spaceship, parachute, kite, ambulance, fire engine,
        digger, sledge, submarine, traffic light, road sign, street lamp, bus stop""",
    "outdoors": """bridge, castle, tower, church/churches, lighthouse, windmill, tent, fence, gate, wall,
        bench/benches, swing, ladder, fountain, statue, well, road, path, tunnel, railway, flag, post box/post
        boxes, volcano/volcanoes, cave, waterfall, island, bush/bushes, cactus/cactuses, rainbow,
        tornado/tornadoes, scarecrow, campfire""",
    "to play with": """doll, teddy bear, puzzle, puppet, drum, guitar, piano, violin, trumpet, flute, whistle,
        bell, racket, goal, medal, trophy/trophies, yo-yo, playing card, chessboard""",
    "tools": """hammer, saw, screwdriver, nail, screw, spade, rake, axe, rope, brush/brushes, needle, magnet,
        telescope, microscope, anchor, barrel, wheelbarrow, hose, torch/torches, sword, shield""",
}  # fmt: skip
PLURAL_ONLY = "people, scissors, trousers, jeans, sunglasses, pyjamas, shorts"
UNCOUNTED = """bread, cheese, butter, rice, soup, chocolate, milk, coffee, tea, juice, honey, furniture, money,
    luggage, smoke, fire, ice, rain, lightning, fog, traffic, jewellery, music, paper, glue, soap"""

# Made-up nouns are put together from these, each parted by a space.
ONSETS = "b bl br c ch cl d dr f fl fr g gl gr h j k kl l m n p pl pr qu r s sh sk sl sm sn sp st str t th tr v w z"
VOWELS = "a e i o u a e i o u ai ea ee oa oo ou"
CODAS = "b ck d f g l ll m mp n nd ng nk nt p r rd rk rn s sk st t x z"
ENDINGS = ("", "", "", "", "er", "le", "et", "ow", "y", "ing", "ock", "ard", "ane", "ish", "ope", "ity", "ator")
RUDE = ("fuc", "fuk", "shi", "cun", "coc", "dic", "dik", "nig", "neg", "fag", "rap", "pis", "pus", "tit", "slu", "sex")


@dataclass(frozen=True)
class Noun:
    """A noun in the form in which it is asked about. ``number``: "one" ("dog"), "many" ("dogs") or "mass" ("bread")."""

    word: str
    number: str
    known: bool = True  # it is among the training's everyday nouns


@cache
def everyday() -> tuple[tuple[Noun, ...], tuple[Noun, ...]]:
    """All everyday nouns: (those in the training, those that are kept for ``heldout_frames.json``).

    Every fifth of each group is kept out, with its plural.
    """
    train: list[Noun] = []
    kept: list[Noun] = []
    for group in [*COUNTED.values(), PLURAL_ONLY, UNCOUNTED]:
        for index, entry in enumerate(" ".join(group.split()).split(", ")):
            one, _, many = entry.partition("/")
            if group in (PLURAL_ONLY, UNCOUNTED):
                forms = [(entry, "many" if group == PLURAL_ONLY else "mass")]
            else:
                forms = [(one, "one"), (many or f"{one}s", "many")]
            known = index % 5 != 4
            (train if known else kept).extend(Noun(word, number, known) for word, number in forms)
    return tuple(train), tuple(kept)


def absent(rng: random.Random) -> Noun:
    """A noun of the training that names nothing in this world. Two in five are made up."""
    if rng.random() < 0.6:
        return rng.choice(everyday()[0])
    word = made_up(rng)
    return Noun(f"{word}s", "many", False) if rng.random() < 0.3 else Noun(word, "one", False)


def made_up(rng: random.Random) -> str:
    """A noun that does not exist, of one to three syllables or, one in four, an everyday noun with another letter."""
    while True:
        if rng.random() < 0.25:
            word = list(rng.choice([noun.word for noun in everyday()[0] if noun.number == "one"]))
            word[rng.randrange(len(word))] = rng.choice("abcdefghiklmnoprstuvw")
            word = "".join(word)
        else:
            syllables = [
                rng.choice(ONSETS.split()) + rng.choice(VOWELS.split()) for _ in range(rng.choice((1, 1, 2, 2, 3)))
            ]
            word = "".join(syllables) + rng.choice(CODAS.split()) + rng.choice(ENDINGS)
        if word.isalpha() and 4 <= len(word) <= 12 and not _exists(word) and not any(part in word for part in RUDE):
            return word


def _exists(word: str) -> bool:
    """Whether a word is one of ours or looks like one in the plural."""
    return bool({word, f"{word}s", word.removesuffix("s"), word.removesuffix("es")} & _taken())


@cache
def _taken() -> frozenset[str]:
    return frozenset((*KINDS, *COLOURS, *VERBS)) | {noun.word for nouns in everyday() for noun in nouns}
