"""From an open study to documents: records, then tables, then text. Imports neither torch nor our other packages.

From the top down; a folder imports only what is below it:

    render       a document in the form that was asked for
    sections     the parts of a report: findings in, blocks of Markdown out
    figures      their data, and Plotly's drawing of them
    document     Markdown, HTML, tables, messages in each language
    analysis     what the records tell: verdicts, insights, totals
    records      Optuna's studies as frozen data, and the names under which facts are stored
    projection   learning curves projected to a horizon; the reference runs
"""
