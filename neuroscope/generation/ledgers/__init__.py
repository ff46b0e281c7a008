"""Ledgers: finished rows' scores, kept while a run goes on."""

from neuroscope.generation.ledgers.ledger import Ledger as Ledger
from neuroscope.generation.ledgers.opening import Output as Output
from neuroscope.generation.ledgers.opening import ResumeAnyway as ResumeAnyway
from neuroscope.generation.ledgers.opening import check_output as check_output
from neuroscope.generation.ledgers.opening import open_ledger as open_ledger
from neuroscope.generation.ledgers.run_conditions import RunConditions as RunConditions
