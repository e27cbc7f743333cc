"""The training loop and what it needs.

Before the first update, in this order:
    inputs      opens the data sets and makes the stream
    batches     keeps the batches that a run's updates had, where it goes on with others
    budget      finds how many updates fit into a length in time
    start       finds the first weights
    preflight   checks the run and says what will happen
    begin       takes the run's directory and finds the checkpoint to continue from
    devices     sets up Fabric (`fabric`); `sharding` divides weights over ranks, `layers` compiles or recomputes layers, `norms`
                lets batch norm see all ranks
The updates:
    loop        the run from its start to its end; read this first
    passes      what goes into one forward pass, and what comes out
    state       all that a run in progress consists of, and how a checkpoint saves and restores it
    totals      the counts of an update, added up over the ranks
    average     an average of the weights, for evaluation and export
    health      judges gradients; `rewind` acts on what went wrong, `events` reads what was done
Between updates:
    evaluate    measures held-out data
    meter       means for the log; `clock` measures time
    best        which evaluation was the best, and when to stop waiting for a better one
    heartbeat   what this rank does, for `polymodal inspect`
    stop        signals and time limits; `trace` profiles some updates

May import: base, data, run, model.
"""
