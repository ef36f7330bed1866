# What an operator's host gets: `cmake --install build/release` (as root; DESTDIR for packages). The paths are those that
# etc/polluxd.service and etc/polluxd.toml name, whatever the prefix is.
install(TARGETS polluxd RUNTIME DESTINATION /usr/sbin)
# A host's own configuration is never overwritten: the shipped one is the documentation of every key.
install(FILES etc/polluxd.toml DESTINATION /usr/share/doc/pollux)
install(CODE [[
  if(NOT EXISTS "$ENV{DESTDIR}/etc/pollux/polluxd.toml")
    file(INSTALL "$ENV{DESTDIR}/usr/share/doc/pollux/polluxd.toml" DESTINATION "/etc/pollux")
  endif()
]])
install(FILES etc/polluxd.service DESTINATION /lib/systemd/system)
install(FILES etc/polluxd.logrotate DESTINATION /etc/logrotate.d RENAME polluxd)
install(FILES etc/apparmor.d/local/abstractions/libvirt-qemu DESTINATION /usr/share/doc/pollux/apparmor.d/local/abstractions)
install(FILES README.md CHANGELOG.md DESTINATION /usr/share/doc/pollux)
install(DIRECTORY docs/ DESTINATION /usr/share/doc/pollux/docs FILES_MATCHING PATTERN "*.md")
