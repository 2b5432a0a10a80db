"""The table of word problems: families of two, three and four steps, and the names that appear in them.

A `Family` is declarative: sentences with slots, a range per number, and the steps as (left, sign, right)
over number names and "s1", "s2" ... for earlier results. To add a kind of problem, add a row to `FAMILIES`;
nothing else changes. Products are two digits (or tens) times one digit and quotients have a divisor of one
digit, so that each step is one that a small model can do without writing more down.
"""

from __future__ import annotations

from dataclasses import dataclass

_NAME_LIST = (
    "Ada Agnes Akira Alma Amir Anna Anton Ben Boris Carla Chen Clara Dan Daria Diego Elif Emil Emma Eva Farid "
    "Felix Fiona Grace Greta Hana Hassan Hugo Ida Igor Irene Ivan Jana Joel Jonas Julia Karim Kofi Lara Layla Leo "
    "Lina Lucas Marco Maria Marta Maya Mei Milan Mona Nadia Nils Nina Noah Olga Omar Oscar Paula Peter Priya Rafael "
    "Rosa Ruth Sam Sara Sofia Stefan Tariq Tessa Tom Uma Vera Victor Wanda Yuki Yusuf Zara"
)
NAMES = tuple(_NAME_LIST.split())


@dataclass(frozen=True)
class Family:
    """One kind of problem: wordings with slots, the range of each number (inclusive), the steps, the things.

    A range may carry a stride: (20, 90, 10) draws tens. Slots {name}, {other} and {thing} are filled from
    `NAMES` and `things`. The result of the last step is the answer.
    """

    name: str
    wordings: tuple[str, ...]
    numbers: dict[str, tuple[int, ...]]
    steps: tuple[tuple[str, str, str], ...]
    things: tuple[str, ...] = ("",)


TWO_STEPS: tuple[Family, ...] = (
    Family(
        "packs",
        (
            "{name} buys {a} packs of {b} {thing} and uses {c} {thing}. How many {thing} are left?",
            "{a} shelves hold {b} {thing} each. {name} takes {c} {thing} away. How many {thing} stay on the shelves?",
            "A factory fills {a} cartons with {b} {thing} each. A check finds that {c} {thing} are broken. "
            "How many {thing} are sound?",
        ),
        {"a": (12, 99), "b": (3, 9), "c": (15, 240)},
        (("a", "*", "b"), ("s1", "-", "c")),
        ("batteries", "tiles", "bulbs", "bricks", "buttons", "pencils", "jars", "bottles", "spoons", "clocks"),
    ),
    Family(
        "visitors",
        (
            "A {thing} has {a} adults and {b} children as visitors. By noon {c} of them have gone home. "
            "How many visitors are still there?",
            "A farm keeps {a} hens and {b} geese. {c} of the birds are sold. How many birds does the farm keep?",
            "{a} girls and {b} boys go to a school. Today {c} of the pupils are on a trip to the {thing}. "
            "How many pupils are at school?",
        ),
        {"a": (120, 890), "b": (105, 690), "c": (35, 390)},
        (("a", "+", "b"), ("s1", "-", "c")),
        ("museum", "zoo", "castle", "park", "fair", "beach", "lake"),
    ),
    Family(
        "shares",
        (
            "{name} shares {a} {thing} equally among {b} children. Each child already had {c} {thing}. "
            "How many {thing} does each child have now?",
            "{b} friends split {a} {thing} equally. Then {name}, one of the friends, finds {c} more. "
            "How many {thing} does {name} have?",
            "{a} {thing} are packed equally into {b} bags, and then {c} {thing} are added to each bag. "
            "How many {thing} does one bag hold?",
        ),
        {"a": (36, 480), "b": (3, 8), "c": (12, 95)},
        (("a", "/", "b"), ("s1", "+", "c")),
        ("nuts", "sweets", "cards", "beads", "pebbles", "stickers", "stamps", "cherries"),
    ),
    Family(
        "change",
        (
            "{name} has {a} dollars and buys {b} {thing} at {c} dollars each. How many dollars are left?",
            "A school has {a} dollars and orders {b} {thing} for {c} dollars apiece. How many dollars does it keep?",
            "{b} {thing} cost {c} dollars each. {name} pays with {a} dollars. How many dollars of change does {name} get?",
        ),
        {"a": (250, 990), "b": (3, 9), "c": (12, 95)},
        (("c", "*", "b"), ("a", "-", "s1")),
        ("lamps", "chairs", "shirts", "tents", "coats", "drums", "clocks", "rugs", "maps"),
    ),
    Family(
        "savings",
        (
            "{name} earns {a} dollars a day and spends {b} of them. How many dollars does {name} save in {c} days?",
            "A well gives {a} litres of water an hour, of which {b} litres are lost. "
            "How many litres remain after {c} hours?",
            "{name} picks {a} kg of {thing} a day and eats or gives away {b} kg of it. "
            "How many kg does {name} have after {c} days?",
        ),
        {"a": (38, 99), "b": (12, 79), "c": (3, 9)},
        (("a", "-", "b"), ("s1", "*", "c")),
        ("fruit", "rice", "tea", "corn", "salad"),
    ),
)

THREE_STEPS: tuple[Family, ...] = (
    Family(
        "boxes",
        (
            "{name} fills {a} boxes with {b} {thing} each. Then {c} {thing} are sold and {d} new ones arrive. "
            "How many {thing} are there now?",
            "A shop gets {a} boxes of {b} {thing}. It sells {c} {thing} and later buys {d} more. "
            "How many {thing} does the shop have?",
            "A store room holds {a} crates with {b} {thing} in each. {name} takes out {c} {thing} and puts in {d}. "
            "How many {thing} does the room hold now?",
        ),
        {"a": (12, 99), "b": (3, 9), "c": (15, 250), "d": (21, 299)},
        (("a", "*", "b"), ("s1", "-", "c"), ("s2", "+", "d")),
        ("apples", "candles", "cups", "pens", "plates", "toys", "books", "eggs", "melons", "shoes", "radios"),
    ),
    Family(
        "wages",
        (
            "{name} has {a} dollars and earns {b} dollars a day for {c} days. Then {name} spends {d} dollars. "
            "How many dollars are left?",
            "{name} works {c} days for {b} dollars a day, adds {a} dollars of savings and pays {d} dollars of rent. "
            "How many dollars does {name} keep?",
            "For each of {c} days {name} is paid {b} dollars. {name} had {a} dollars before and now pays {d} dollars "
            "for a bicycle. How many dollars remain?",
        ),
        {"b": (12, 99), "c": (3, 9), "a": (25, 450), "d": (35, 480)},
        (("b", "*", "c"), ("s1", "+", "a"), ("s2", "-", "d")),
    ),
    Family(
        "tickets",
        (
            "A {thing} sells {a} adult tickets at {b} dollars and {c} child tickets at {d} dollars. "
            "How many dollars does it take in?",
            "{name} sells {a} big bags at {b} dollars each and {c} small bags at {d} dollars each at the {thing}. "
            "How many dollars is that?",
            "For the {thing}, {name} prints {a} colour posters at {b} dollars each and {c} plain ones at {d} dollars "
            "each. How many dollars does {name} pay?",
        ),
        {"a": (12, 99), "b": (5, 9), "c": (12, 99), "d": (2, 4)},
        (("a", "*", "b"), ("c", "*", "d"), ("s1", "+", "s2")),
        ("museum", "zoo", "theatre", "park", "fair", "cinema", "circus", "castle"),
    ),
    Family(
        "journey",
        (
            "{name} drives {a} km on Monday and {b} km more than that on Tuesday. The whole trip is {c} km. "
            "How many km are left?",
            "On a tour of {c} km, {name} rides {a} km the first week and {b} km more than that the second week. "
            "How many km remain?",
            "A railway of {c} km is built in three parts. The first part is {a} km long and the second {b} km longer "
            "than the first. How many km long is the third?",
        ),
        {"a": (45, 290), "b": (15, 140), "c": (320, 980)},
        (("a", "+", "b"), ("a", "+", "s1"), ("c", "-", "s2")),
    ),
    Family(
        "library",
        (
            "A library has {a} {thing} and buys {b} more. It lends out {c} of them and gets {d} back. "
            "How many {thing} are in the library?",
            "{name} owns {a} {thing}, is given {b}, loses {c} and finds {d}. How many {thing} does {name} have?",
            "There are {a} {thing} in a shop. {b} are delivered, {c} are sold and {d} are brought back. "
            "How many {thing} are in the shop?",
        ),
        {"a": (120, 890), "b": (25, 240), "c": (45, 330), "d": (18, 190)},
        (("a", "+", "b"), ("s1", "-", "c"), ("s2", "+", "d")),
        ("maps", "films", "games", "comics", "records", "stamps", "novels", "puzzles", "prints"),
    ),
    Family(
        "seats",
        (
            "A hall has {a} rows of {b} seats and a balcony with {c} seats. {d} seats are taken. How many seats are free?",
            "{name} plants {a} rows of {b} {thing} and {c} more along the wall. Frost kills {d} of them. "
            "How many {thing} are left?",
            "A car park has {a} levels with {b} places each and {c} places outside. {d} places are in use. "
            "How many places are free?",
        ),
        {"a": (4, 9), "b": (20, 90, 10), "c": (24, 180), "d": (36, 390)},
        (("a", "*", "b"), ("s1", "+", "c"), ("s2", "-", "d")),
        ("roses", "tulips", "herbs", "trees", "onions", "vines", "beans", "lilies"),
    ),
    Family(
        "collectors",
        (
            "{name} has {a} {thing}. {other} has {b} times as many, but gives away {c}. "
            "How many {thing} do {name} and {other} have together?",
            "{other} made {b} times as many {thing} as {name}, who made {a}. {other} broke {c} of them. "
            "How many {thing} do the two have in all?",
            "{name} finds {a} {thing} and {other} finds {b} times as many. {other} then loses {c} {thing}. "
            "How many {thing} do they have between them?",
        ),
        {"a": (15, 99), "b": (2, 6), "c": (12, 190)},
        (("a", "*", "b"), ("s1", "-", "c"), ("s2", "+", "a")),
        ("coins", "shells", "cards", "badges", "marbles", "stickers", "kites", "bowls", "masks", "rings"),
    ),
    Family(
        "passengers",
        (
            "A {thing} carries {a} people. At the first stop {b} get off and {c} get on, at the second {d} get off. "
            "How many people are on the {thing}?",
            "A {thing} leaves with {a} people on board. {b} leave, {c} come in and then {d} leave. "
            "How many people stay on the {thing}?",
            "There are {a} people on a {thing}. {b} get off, {c} get on and at the next stop {d} get off. "
            "How many people are still on the {thing}?",
        ),
        {"a": (180, 890), "b": (25, 160), "c": (17, 190), "d": (28, 290)},
        (("a", "-", "b"), ("s1", "+", "c"), ("s2", "-", "d")),
        ("train", "ferry", "ship", "tram", "steamer", "night train"),
    ),
)

FOUR_STEPS: tuple[Family, ...] = (
    Family(
        "stall",
        (
            "{name} sells {a} {thing} at {b} dollars each and {c} jars of jam at {d} dollars each. "
            "The stall costs {e} dollars. How many dollars does {name} earn?",
            "A class sells {a} {thing} for {b} dollars each and {c} cakes for {d} dollars each, and gives {e} dollars "
            "to the zoo. How many dollars does the class keep?",
            "At the market {name} takes {b} dollars for each of {a} {thing} and {d} dollars for each of {c} baskets. "
            "The way there cost {e} dollars. How many dollars are left?",
        ),
        {"a": (12, 99), "b": (5, 9), "c": (12, 99), "d": (2, 4), "e": (25, 190)},
        (("a", "*", "b"), ("c", "*", "d"), ("s1", "+", "s2"), ("s3", "-", "e")),
        ("plants", "candles", "scarves", "mugs", "cheeses", "hats", "pots", "pies"),
    ),
    Family(
        "depot",
        (
            "A depot gets {a} crates of {b} {thing}. It sends out {c} {thing} on Monday, receives {d} on Tuesday and "
            "sends out {e} on Wednesday. How many {thing} are left?",
            "{name} loads {a} carts with {b} {thing} each. {c} {thing} are sold, {d} are added and {e} more are sold. "
            "How many {thing} does {name} have now?",
            "A shop opens with {a} cases of {b} {thing}. It sells {c} {thing} in May, buys {d} in June and sells {e} in "
            "July. How many {thing} does it have then?",
        ),
        {"a": (30, 99), "b": (4, 9), "c": (25, 190), "d": (21, 290), "e": (18, 240)},
        (("a", "*", "b"), ("s1", "-", "c"), ("s2", "+", "d"), ("s3", "-", "e")),
        ("tyres", "lemons", "lamps", "pipes", "sacks", "pumps", "boards", "ropes"),
    ),
    Family(
        "three days",
        (
            "A bakery sells {a} {thing} on Monday, {b} more than that on Tuesday, and on Wednesday {c} fewer than on "
            "Tuesday. How many {thing} does it sell on the three days?",
            "{name} packs {a} {thing} in the first week and {b} more in the second. In the third week it is {c} fewer "
            "than in the second. How many {thing} does {name} pack in all?",
            "One hall holds {a} {thing}, a second holds {b} more than the first, and a third {c} fewer than the second. "
            "How many {thing} do the three halls hold together?",
        ),
        {"a": (65, 490), "b": (15, 190), "c": (12, 170)},
        (("a", "+", "b"), ("s1", "-", "c"), ("a", "+", "s1"), ("s3", "+", "s2")),
        ("rolls", "cakes", "loaves", "pies", "tarts", "biscuits"),
    ),
    Family(
        "shared cost",
        (
            "{e} friends rent a {thing} for {a} days at {b} dollars a day. They pay {c} dollars for food, get {d} dollars "
            "back at the end and share the cost equally. How many dollars does each pay?",
            "A club of {e} people hires a {thing} for {a} hours at {b} dollars an hour. Food costs {c} dollars, a voucher "
            "takes off {d} dollars, and all pay the same. How many dollars is that for one person?",
            "{name} and the rest of a team, {e} people in all, take a {thing} for {a} days, which is {b} dollars a day "
            "plus {c} dollars for repairs. A sponsor gives {d} dollars. How many dollars is an equal share of the rest?",
        ),
        {"a": (3, 9), "b": (14, 69), "c": (30, 190), "d": (12, 75), "e": (3, 6)},
        (("b", "*", "a"), ("s1", "+", "c"), ("s2", "-", "d"), ("s3", "/", "e")),
        ("boat", "van", "hut", "cabin", "minibus", "barge"),
    ),
    Family(
        "damaged",
        (
            "Of {a} boxes of {thing}, {b} are damaged and thrown away. Each of the others holds {c} {thing}. {name} adds "
            "{d} loose {thing} and sells {e}. How many {thing} are left?",
            "{name} has {a} bags, but {b} of them are torn. {name} puts {c} {thing} into each good bag and has {d} {thing} "
            "over. Then {e} {thing} are given away. How many {thing} does {name} have?",
            "A farm has {a} fields and leaves {b} of them empty. The others give {c} sacks of {thing} each, and {d} sacks "
            "are bought. {e} sacks are used as seed. How many sacks are there?",
        ),
        {"a": (34, 99), "b": (12, 60), "c": (3, 9), "d": (21, 190), "e": (15, 170)},
        (("a", "-", "b"), ("s1", "*", "c"), ("s2", "+", "d"), ("s3", "-", "e")),
        ("beans", "potatoes", "carrots", "peas", "onions", "chestnuts"),
    ),
)

FAMILIES: tuple[Family, ...] = TWO_STEPS + THREE_STEPS + FOUR_STEPS
