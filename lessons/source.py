"""A module's source text, and where in it each name is defined. Nothing is run or imported."""

import ast


def definitions(module: ast.Module) -> dict[str, ast.stmt]:
    """Functions, classes, methods ("RMSNorm.forward"), constants and fields -> the statements that make them."""
    found: dict[str, ast.stmt] = {}

    def look(statements: list[ast.stmt], prefix: str) -> None:
        for statement in statements:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                found[prefix + statement.name] = statement
            if isinstance(statement, ast.ClassDef):
                look(statement.body, f"{statement.name}.")
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            found.update({prefix + target.id: statement for target in targets if isinstance(target, ast.Name)})

    look(module.body, "")
    return found


def first_line(statement: ast.stmt) -> int:
    """The number of the line on which a statement begins, with its decorators."""
    return min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", ()))])


def text_of(source: str, statement: ast.stmt) -> str:
    """The lines of a statement, decorators and the comments between them included."""
    return "\n".join(source.splitlines()[first_line(statement) - 1 : statement.end_lineno])
