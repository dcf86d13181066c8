"""What the scripted teacher knows of English: plurals, people and animals, verbs, and what COCO's things are for.

No entry names a second thing ("keeping dry", never "rain"): an inference drawn from this table must not put
something into a picture that nobody has seen there.
"""

import re


def listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "policeman": "policemen",
    "policewoman": "policewomen", "fireman": "firemen", "businessman": "businessmen", "snowman": "snowmen",
    "fisherman": "fishermen", "mouse": "mice", "goose": "geese", "foot": "feet", "tooth": "teeth", "knife": "knives",
    "shelf": "shelves", "leaf": "leaves", "loaf": "loaves", "calf": "calves", "wolf": "wolves",
}  # fmt: skip
SAME_IN_PLURAL = frozenset(("sheep", "fish", "deer", "cattle", "aircraft", "bison"))
PAIRS = frozenset(("skis", "scissors", "glasses", "sunglasses", "pants", "jeans", "shorts", "headphones", "goggles"))
MASS = frozenset(("broccoli", "bread", "rice", "food", "fruit", "grass", "snow", "sand", "water", "sky", "furniture"))
SHORTER = {"tv": "TV", "sports ball": "ball", "dining table": "table"}  # how the picture's talk names a category


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def plural(noun: str) -> str:
    """ "bench" -> "benches", "wine glass" -> "wine glasses", "mouse" -> "mice"; "sheep" and "skis" stay."""
    first, _, last = noun.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last in SAME_IN_PLURAL | PAIRS | MASS:
        pass
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{first} {last}".strip()


MEN = ("man", "boy", "guy", "gentleman", "male", "policeman", "fireman", "businessman", "fisherman", "father")
WOMEN = ("woman", "girl", "lady", "female", "policewoman", "bride", "mother")
ANYBODY = (
    "person", "child", "kid", "baby", "toddler", "infant", "teenager", "teen", "adult", "couple", "family", "player",
    "batter", "pitcher", "catcher", "umpire", "surfer", "skier", "snowboarder", "skateboarder", "skater", "rider",
    "biker", "cyclist", "motorcyclist", "swimmer", "chef", "cook", "student", "worker", "driver", "passenger",
    "pedestrian", "farmer", "cowboy", "jockey", "soldier", "officer", "athlete", "hiker", "runner", "musician",
)  # fmt: skip
PEOPLE = frozenset((*MEN, *WOMEN, *ANYBODY))
ANIMALS = frozenset((
    "animal", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "kitten", "puppy",
    "pony", "bull", "calf", "goat", "duck", "goose", "seagull", "pigeon", "parrot", "owl", "swan", "pelican",
    "monkey", "deer", "lion", "tiger", "rabbit", "squirrel", "pig",
))  # fmt: skip
OTHER_NAMES = {  # what captions call a category, besides its own name and its last word
    "person": PEOPLE,
    "bird": frozenset(("duck", "goose", "seagull", "pigeon", "parrot", "owl", "swan", "pelican")),
    "cat": frozenset(("kitten",)), "dog": frozenset(("puppy",)), "horse": frozenset(("pony",)),
    "cow": frozenset(("bull", "calf", "cattle")), "bear": frozenset(("cub",)),
    "bicycle": frozenset(("bike",)), "motorcycle": frozenset(("motorbike", "bike", "scooter", "moped")),
    "airplane": frozenset(("plane", "jet", "jetliner", "airliner", "aircraft")), "car": frozenset(("taxi", "van")),
    "boat": frozenset(("ship", "sailboat", "canoe", "kayak")), "couch": frozenset(("sofa", "loveseat")),
    "tv": frozenset(("television", "monitor", "screen")), "refrigerator": frozenset(("fridge",)),
    "donut": frozenset(("doughnut", "pastry")), "suitcase": frozenset(("luggage",)), "handbag": frozenset(("purse",)),
    "cup": frozenset(("mug",)), "frisbee": frozenset(("disc",)), "laptop": frozenset(("computer",)),
    "dining table": frozenset(("desk",)), "tennis racket": frozenset(("racquet",)), "truck": frozenset(("lorry",)),
}  # fmt: skip

_BASES = listed(
    """sit stand hold ride walk play lay lie look wear eat ski fly drive run talk jump swing hit throw catch kick
carry cut cook prepare make take pose smile laugh wait sleep rest read write work type watch use swim surf skate
skateboard snowboard climb cross push pull lead feed pet graze drink pour brush wash clean hang lean float sail row
paddle travel move pass approach leave enter land perch stare gaze point reach bend kneel crouch squat lounge relax nap
hug kiss dance sing speak chat text pick put serve slice chop bake grill fry sell buy shop browse examine inspect fix
dig herd chase follow race compete practice celebrate cheer perform balance slide glide fall roll spin turn head go come
get try attempt gather share enjoy lift raise load unload board wave bite lick chew sniff peek hide splash bathe shave
blow bounce help teach study photograph film hike camp fish dribble stretch wade wander drag tow stop wipe"""
)


def _ing(base: str) -> str:
    if base.endswith("ie"):
        return base[:-2] + "ying"
    if base.endswith("e") and not base.endswith("ee"):
        return base[:-1] + "ing"
    doubled = re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", base)
    return base + (base[-1] if doubled else "") + "ing"


# "riding": an action where it follows its subject
DOING = frozenset((*map(_ing, _BASES), "travelling", "swimming", "sitting"))
STAYING = frozenset(("sitting", "standing", "laying", "lying", "resting", "hanging", "leaning", "floating", "perching"))
STATES = frozenset(("parked", "seated", "perched", "placed", "mounted", "located", "stacked", "stopped"))
FINITE = frozenset((
    "is", "are", "was", "were", "has", "have", "had", "does", "do", "can", "will", "looks", "appears", "seems",
    "sat", "stood", "flew", "ran", "ate", "rode", "took", "held", "wore", "swam", "drove", "threw", "caught", "went",
    "came", "fell", "drank", "contains", "includes", "shows", "hangs", "surround", "surrounds", "cover", "covers",
    "line",
    *_BASES, *(plural(base) for base in _BASES),
))  # fmt: skip

USES = {  # category -> what it is for
    "bicycle": "getting about by pedalling", "car": "getting from one place to another",
    "motorcycle": "getting about fast", "airplane": "travelling far by air",
    "bus": "travelling together along a fixed route", "train": "travelling along a fixed line",
    "truck": "moving heavy loads", "boat": "getting about afloat",
    "traffic light": "settling who may go and who has to wait", "fire hydrant": "firefighting",
    "stop sign": "making everybody halt", "parking meter": "paying for the time one parks",
    "bench": "sitting down and resting", "backpack": "carrying belongings with both hands free",
    "umbrella": "keeping dry or in the shade", "handbag": "carrying small belongings",
    "tie": "dressing formally", "suitcase": "packing for a journey", "frisbee": "throwing and catching",
    "skis": "gliding downhill or cross-country", "snowboard": "gliding downhill", "sports ball": "playing",
    "kite": "flying in the open air", "baseball bat": "hitting in a game", "baseball glove": "catching in a game",
    "skateboard": "rolling along and doing tricks", "surfboard": "surfing", "tennis racket": "playing tennis",
    "bottle": "keeping something to drink at hand", "wine glass": "drinking", "cup": "drinking", "fork": "eating",
    "knife": "cutting", "spoon": "eating or stirring", "bowl": "serving or mixing", "chair": "sitting",
    "couch": "sitting in comfort", "bed": "sleeping", "tv": "watching programmes",
    "laptop": "working or passing the time", "mouse": "pointing and clicking", "remote": "switching from a distance",
    "keyboard": "typing", "cell phone": "calling and texting", "microwave": "heating something up quickly",
    "oven": "baking and roasting", "toaster": "toasting", "sink": "washing", "refrigerator": "keeping things cold",
    "book": "reading", "clock": "telling the time", "vase": "decorating", "scissors": "cutting",
    "teddy bear": "playing and cuddling", "hair drier": "drying hair", "toothbrush": "daily cleaning",
}  # fmt: skip
FOODS = ("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake")
OCCASIONS = {  # what things that come together point to
    "traffic": ("bicycle", "car", "motorcycle", "bus", "train", "truck", "traffic light", "stop sign", "parking meter"),
    "cooking": ("microwave", "oven", "toaster", "sink", "refrigerator"),
    "eating and drinking": ("fork", "knife", "spoon", "bowl", "cup", "wine glass", "bottle", *FOODS),
    "resting and passing free time": ("couch", "bed", "tv", "remote"),
    "working or studying": ("laptop", "keyboard", "mouse", "book"),
    "sport and play": (
        "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
        "surfboard", "tennis racket",
    ),
    "washing and getting ready": ("toilet", "toothbrush", "hair drier"),
    "going on a journey": ("suitcase", "backpack", "handbag", "airplane"),
}  # fmt: skip
PLACES = (
    "living room", "dining room", "waiting room", "hotel room", "parking lot", "tennis court", "baseball field",
    "soccer field", "train station", "bus stop", "ski slope", "city street", "kitchen", "bathroom", "bedroom", "street",
    "beach", "field", "park", "ocean", "road", "sidewalk", "zoo", "restaurant", "office", "forest", "river", "lake",
    "harbor", "airport", "market", "garden", "yard", "farm", "mountain", "hill", "pool", "stadium", "museum", "city",
    "pasture", "desert", "highway", "intersection", "room", "store", "slope", "court", "library",
)  # fmt: skip
PLACES_FOR = {  # what rooms and grounds are for
    "kitchen": "cooking", "bathroom": "washing and getting ready", "bedroom": "sleeping and resting",
    "living room": "resting and spending time together", "dining room": "eating together", "office": "working",
    "restaurant": "eating out", "beach": "resting and bathing", "park": "being outdoors at ease",
    "street": "getting from one place to another", "road": "getting from one place to another",
    "tennis court": "playing tennis", "baseball field": "playing baseball", "airport": "setting out on a journey",
    "train station": "setting out on a journey", "parking lot": "leaving something parked for a while",
    "zoo": "watching and learning", "market": "buying and selling", "store": "buying and selling",
    "museum": "looking at what is shown there", "library": "reading and studying", "pasture": "grazing",
    "stadium": "playing and watching sports", "ski slope": "skiing",
}  # fmt: skip
SOCIABLE = frozenset(("zebra", "giraffe", "elephant", "sheep", "cow", "horse", "bird"))
TAME = {  # whether they live as pets or livestock, and why one can tell
    "cat": (True, "cats are among the commonest pets"), "dog": (True, "dogs are among the commonest pets"),
    "horse": (True, "horses have been bred and ridden for thousands of years"),
    "sheep": (True, "sheep have been bred and kept for thousands of years"),
    "cow": (True, "cows have been bred and kept for thousands of years"),
    "elephant": (False, "most elephants are never tamed"), "bear": (False, "bears are dangerous and hard to tame"),
    "zebra": (False, "zebras are hard to tame"), "giraffe": (False, "giraffes are hardly ever tamed"),
}  # fmt: skip
LIGHT = frozenset((
    "frisbee", "fork", "knife", "spoon", "cup", "book", "cell phone", "remote", "toothbrush", "apple", "orange",
    "banana", "donut", "scissors", "wine glass", "mouse", "sports ball", "handbag", "umbrella", "bottle",
))  # fmt: skip
HEAVY = frozenset((
    "car", "bus", "train", "truck", "airplane", "boat", "couch", "bed", "refrigerator", "oven", "bench",
    "dining table", "motorcycle", "elephant", "horse", "cow", "fire hydrant", "toilet",
))  # fmt: skip
CALLS_FOR = {  # verb -> what doing it well takes
    "riding": "balance", "surfing": "balance and good timing", "skiing": "balance and control of one's speed",
    "snowboarding": "balance and control of one's speed", "skateboarding": "balance and a lot of practice",
    "skating": "balance", "playing": "attention and some practice", "cutting": "a steady hand",
    "slicing": "a steady hand", "cooking": "patience and attention", "preparing": "patience and attention",
    "jumping": "strength and good timing", "swinging": "good timing", "throwing": "a good aim",
    "hitting": "good timing", "catching": "quick reactions", "kicking": "a good aim", "carrying": "some strength",
    "driving": "steady attention", "crossing": "caution", "feeding": "gentleness", "petting": "gentleness",
    "climbing": "strength and sure footing", "running": "stamina", "swimming": "stamina",
}  # fmt: skip
NEXT = {  # verb -> what may come after it
    "sitting": "may get up", "standing": "may move on", "riding": "may slow down and stop",
    "walking": "may keep going the same way, or stop", "sleeping": "may wake up", "laying": "may get up",
    "lying": "may get up", "resting": "may get up", "waiting": "may move on once the wait is over",
    "jumping": "must come down again", "playing": "may go on playing, or stop for a rest",
    "running": "may slow down when tired", "grazing": "may graze on, or move to another spot",
    "looking": "may turn to something else", "watching": "may turn to something else",
    "eating": "may stop when nothing is left to eat", "cutting": "may go on until the cutting is done",
    "cooking": "may go on until it is time to eat", "preparing": "may go on until all is ready",
    "crossing": "may soon reach the other side", "posing": "may relax now that the picture is taken",
    "swimming": "may swim on, or stop for a rest", "reading": "may read on, or stop for a rest",
    "surfing": "may go on until the ride is over", "skiing": "may go on until the run is over",
    "driving": "may stop at some point", "traveling": "may stop at some point", "drinking": "may drink on, or stop",
}  # fmt: skip
