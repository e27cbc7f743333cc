"""What every other room stands on: the terminal, files, inputs, secrets.

`console` prints for people and for programs; `files` locks, writes whole or not at all, and reads JSON lines; `inputs` reads what a
command is given; `install` says what to type where a
package is missing; `names` reads class names; `options` words the options that several commands share; `redact` takes secrets out of
addresses; `ramp` says how many samples each update has.
May import: nothing of `pipelines`.
"""
