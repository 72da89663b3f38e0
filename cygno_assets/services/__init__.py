"""The processes that make up a running system: started, waited for, and taken down again."""
