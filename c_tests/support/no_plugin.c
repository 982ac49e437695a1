// A shared library that is no plug-in: it has no kvkeep_plugin.
int no_plugin(void);

int no_plugin(void) {
    return 0;
}
