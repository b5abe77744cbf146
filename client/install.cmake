# What a program that links the client library gets: library, headers, find_package(kvtier), pkg-config.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS kvtier EXPORT kvtierTargets COMPONENT client LIBRARY NAMELINK_COMPONENT client)
install(DIRECTORY include/kvtier DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT client)
install(EXPORT kvtierTargets NAMESPACE kvtier:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvtier COMPONENT client)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/kvtierConfig.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/kvtierConfig.cmake INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvtier)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/kvtierConfigVersion.cmake COMPATIBILITY SameMinorVersion)
file(RELATIVE_PATH KVTIER_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)  # wherever it is installed to
configure_file(${PROJECT_SOURCE_DIR}/cmake/kvtier.pc.in ${CMAKE_CURRENT_BINARY_DIR}/kvtier.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/kvtierConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/kvtierConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvtier COMPONENT client)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/kvtier.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT client)
