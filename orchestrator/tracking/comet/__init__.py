"""Comet: a view of a study that is made to agree with the catalog, offline as an archive or online over REST.

`content` says what a study's experiment holds; `archive` builds it as a file; `experiment` is the one in Comet;
`sync` makes that agree; `stream` sends while a sweep runs. The SDK lives in child processes alone (`child`).
"""
