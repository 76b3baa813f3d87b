"""The metadata database: schema, migrations, the stores of core's nouns, the garbage collector."""
