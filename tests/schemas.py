"""Random JSON Schemas of the kinds that people write: forms, lists, choices, numbers with bounds, nested."""

from random import Random
from typing import Any

WORDS = ("name", "age", "city", "tags", "price", "a b", 'say "hi"', "größe", "x/y~z")


def random_schema(random: Random, depth: int = 3) -> Any:
    """A schema that some JSON of a few hundred characters satisfies."""
    kinds = [_string, _string, _integer, _number, _enum, _plain]
    if depth:
        kinds += [_object, _object, _array, _array, _either]
    return random.choice(kinds)(random, depth - 1)


def _plain(random: Random, depth: int) -> Any:
    return {"type": random.choice(["boolean", "null", ["boolean", "null"], ["null", "integer"]])}


def _string(random: Random, depth: int) -> Any:
    schema: dict[str, Any] = {"type": "string", "maxLength": random.randint(2, 8)}
    if random.random() < 0.5:
        schema["minLength"] = random.randint(0, 2)
    if random.random() < 0.3:
        return {"type": "string", "pattern": random.choice(["^[a-z]{1,5}$", "^[0-9]{4}-[0-9]{2}$", "^(ab|cd?)+$"])}
    return schema


def _integer(random: Random, depth: int) -> Any:
    low = random.randint(-1000, 1000)
    schema: dict[str, Any] = {"type": "integer", random.choice(["minimum", "exclusiveMinimum"]): low}
    schema[random.choice(["maximum", "exclusiveMaximum"])] = low + random.randint(20, 5000)
    if random.random() < 0.3:
        schema["multipleOf"] = random.choice([2, 3, 5, 7])
    return schema


def _number(random: Random, depth: int) -> Any:
    low = round(random.uniform(-100, 100), 2)
    return {"type": "number", "minimum": low, "maximum": low + random.randint(1, 100)}


def _enum(random: Random, depth: int) -> Any:
    values: list[Any] = [1, 2.5, None, True, "yes", "no", "ja\n", {"a": [1]}, [], 'q"']
    if random.random() < 0.3:
        return {"const": random.choice(values)}
    return {"enum": random.sample(values, random.randint(1, 4))}


def _object(random: Random, depth: int) -> Any:
    names = random.sample(WORDS, random.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(random, depth) for name in names},
        "additionalProperties": random.choice([False, False, {"type": "integer", "minimum": 0, "maximum": 9}]),
    }
    if names and random.random() < 0.7:
        schema["required"] = random.sample(names, random.randint(1, len(names)))
    return schema


def _array(random: Random, depth: int) -> Any:
    schema = {"type": "array", "items": random_schema(random, depth), "maxItems": random.randint(2, 4)}
    if random.random() < 0.5:
        schema["minItems"] = random.randint(0, 2)
    if random.random() < 0.2:
        return {"type": "array", "prefixItems": [random_schema(random, depth) for _ in range(2)], "items": False}
    return schema


def _either(random: Random, depth: int) -> Any:
    branches = [random_schema(random, depth) for _ in range(2)]
    if random.random() < 0.4:
        return {"$defs": {"one": branches[0]}, "anyOf": [{"type": "null"}, branches[1]]}
    return {"anyOf": branches}
