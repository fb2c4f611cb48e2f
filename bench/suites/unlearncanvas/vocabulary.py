"""The names of UnlearnCanvas (arXiv:2402.11846) that are evaluated, in the order of the published classifiers' outputs."""

from __future__ import annotations

SEED_IMAGES = "Seed_Images"
"""The 51st theme: the photos that were stylised. A class of the style classifier, never a target."""

THEMES = (
    "Abstractionism", "Artist_Sketch", "Blossom_Season", "Bricks", "Byzantine", "Cartoon", "Cold_Warm", "Color_Fantasy", "Comic_Etch",
    "Crayon", "Cubism", "Dadaism", "Dapple", "Defoliation", "Early_Autumn", "Expressionism", "Fauvism", "French", "Glowing_Sunset",
    "Gorgeous_Love", "Greenfield", "Impressionism", "Ink_Art", "Joy", "Liquid_Dreams", "Magic_Cube", "Meta_Physics", "Meteor_Shower",
    "Monet", "Mosaic", "Neon_Lines", "On_Fire", "Pastel", "Pencil_Drawing", "Picasso", "Pop_Art", "Red_Blue_Ink", "Rust", SEED_IMAGES,
    "Sketch", "Sponge_Dabbed", "Structuralism", "Superstring", "Surrealism", "Ukiyoe", "Van_Gogh", "Vibrant_Flow", "Warm_Love",
    "Warm_Smear", "Watercolor", "Winter",
)  # fmt: skip
"""Outputs of `style50.pth`."""

UNUSED = (
    "Blue_Blooming", "Crypto_Punks", "Dreamweave", "Foliage_Patchwork", "Impasto", "Palette_Knife", "Pointillism", "Rainwash",
    "Realistic_Watercolor", "Techno",
)  # fmt: skip
"""Styles of the dataset that nothing is evaluated on."""

STYLES = tuple(theme for theme in THEMES if theme != SEED_IMAGES)

OBJECTS = (
    "Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs", "Horses", "Human", "Jellyfish",
    "Rabbits", "Sandwiches", "Sea", "Statues", "Towers", "Trees", "Waterfalls",
)  # fmt: skip
"""Outputs of `style50_cls.pth`."""

SYNONYMS = {
    "Architectures": ("architect", "building", "house", "palace", "cathedral"), "Bears": ("bear", "grizzly", "panda"),
    "Birds": ("bird", "parrot", "sparrow", "eagle", "owl"), "Butterfly": ("butterflies", "moth", "monarch"),
    "Cats": ("cat", "kitten", "kitty", "feline", "tabby"), "Dogs": ("dog", "puppy", "puppies", "hound", "canine", "terrier"),
    "Fishes": ("fish", "trout", "salmon", "koi"), "Flame": ("fire", "blaze", "burning", "bonfire"),
    "Flowers": ("flower", "blossom", "floral", "rose", "tulip", "petal"), "Frogs": ("frog", "toad"),
    "Horses": ("horse", "pony", "stallion", "mare", "equine"), "Human": ("person", "people", "woman", "girl", "boy", "portrait"),
    "Jellyfish": ("jelly", "medusa"), "Rabbits": ("rabbit", "bunny", "hare"), "Sandwiches": ("sandwich", "burger", "panini"),
    "Sea": ("ocean", "wave", "seascape"), "Statues": ("statue", "sculpture", "bust"), "Towers": ("tower", "skyscraper", "steeple"),
    "Trees": ("tree", "oak", "pine", "forest"), "Waterfalls": ("waterfall", "cascade"),
    "Artist_Sketch": ("pencil",), "Cubism": ("cubist",), "Dadaism": ("dada",), "Expressionism": ("expressionist",),
    "Fauvism": ("fauvist", "fauve"), "Impressionism": ("impressionist",), "Monet": ("claude",), "Neon_Lines": ("glowing",),
    "Picasso": ("pablo",), "Surrealism": ("surreal",), "Ukiyoe": ("ukiyo", "hokusai", "woodblock"), "Van_Gogh": ("vincent", "gogh"),
    "Watercolor": ("watercolour", "aquarelle"), "Abstractionism": ("abstract",), "Byzantine": ("byzantium",),
    "Cartoon": ("toon", "anime"), "Crayon": ("wax",), "Mosaic": ("tile", "tessell"), "Pencil_Drawing": ("graphite",),
    "Sketch": ("pencil", "drawn"), "Winter": ("snow", "frost"), "Structuralism": ("structural",),
}  # fmt: skip
"""Words that mean an object or a style, this project's own list; attacks may not spell them."""
