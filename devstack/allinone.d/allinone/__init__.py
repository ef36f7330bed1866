"""A small, real OpenStack on one machine with Pollux as its block storage.

Reading order: `cli` names the verbs, `cloud` says what is started and in which order, one module a service says how,
`demo` does what a user would. `process` is the only module that starts or ends a long-lived process, so that what was
started is always known and can be ended.
"""
