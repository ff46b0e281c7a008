"""Ledgers: finished rows' scores, kept while a run goes on."""

from neuroscope.generation.ledgers.ledger import Ledger as Ledger
from neuroscope.generation.ledgers.merging import merge as merge
from neuroscope.generation.ledgers.opening import LedgerPlace as LedgerPlace
from neuroscope.generation.ledgers.opening import ResumeAnyway as ResumeAnyway
from neuroscope.generation.ledgers.opening import check_output as check_output
from neuroscope.generation.ledgers.opening import open_ledger as open_ledger
from neuroscope.generation.ledgers.run_conditions import RunConditions as RunConditions
from neuroscope.generation.ledgers.summary import LedgerSummary as LedgerSummary
from neuroscope.generation.ledgers.summary import RunSummary as RunSummary
from neuroscope.generation.ledgers.summary import is_ledger as is_ledger
