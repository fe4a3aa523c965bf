"""Plain texts, written for this purpose, on which the loss of a version shows how much it has forgotten."""

from __future__ import annotations

from typing import Final

GENERAL_TEXTS: Final[tuple[str, ...]] = (
    "Water boils at a lower temperature on a mountain than at the sea, because the air above it weighs less. A cook "
    "who moves to the highlands soon learns that beans take longer there, and that a pot with a tight lid is worth its "
    "price.",
    "The old railway station stood empty for thirty years. Pigeons nested in the clock, and grass grew between the "
    "rails. Then a baker from the next village rented the waiting room, and within a summer people were queuing again, "
    "not for trains but for bread.",
    "To plant a young tree, dig a hole twice as wide as its roots but no deeper. Loosen the soil at the sides, set the "
    "tree upright, fill the hole, and press the earth down with your foot. Water it well in the first year, above all "
    "in dry weeks.",
    "A triangle with sides of three, four and five units has a right angle between the two shorter ones. Builders have "
    "used a rope with twelve equal parts for this since ancient times, long before anybody had written down a proof.",
    "When the orchestra had tuned, the conductor waited until the last cough had died away. Then she raised her hand, "
    "and the cellos began so quietly that the audience could not say afterwards when the silence had ended.",
    "Most city budgets come from three sources: taxes, fees and money from the state. If one of them falls, the others "
    "have to rise, or something has to be closed. That is why a swimming pool can depend on the price of land at the "
    "other end of the country.",
    "The moon always turns the same side towards the earth, since it rotates once in the time of one orbit. Nobody "
    "had seen its far side until a spacecraft flew around it in the last century and sent back a few blurred photos.",
    "My grandmother wrote her recipes on the backs of envelopes. She never gave amounts, only what the dough should "
    "feel like. It took me years to bake her plum cake, and I still think that hers was better.",
    "A good password is long rather than complicated. Four unrelated words are easier to remember than eight random "
    "characters, and they take a machine far longer to guess. Use each password in one place only.",
    "Rivers carry sand and stones down to the sea. Where the land is flat, the water slows, and what it carried sinks. "
    "Over thousands of years this makes a delta, with many small arms and very fertile soil.",
)
