"""Where a module's source defines each name, and the source of it. The module is not imported."""

import ast


def definitions(module: ast.Module) -> dict[str, ast.stmt]:
    """The statement that defines each function, class, method ("RMSNorm.forward"), constant and field, by name."""
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
    """The number of a statement's first line, which may be a decorator's."""
    return min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", ()))])


def text_of(source: str, statement: ast.stmt) -> str:
    """The source lines of a statement, with its decorators and comments."""
    return "\n".join(source.splitlines()[first_line(statement) - 1 : statement.end_lineno])
